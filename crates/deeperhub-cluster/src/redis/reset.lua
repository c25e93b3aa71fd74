-- Starts a new, empty stream, and tells the nodes that follow the topic.
--
-- KEYS: list, meta.
-- ARGV: 1 channel, 2 and 3 the envelope before and after the fields that this script fills in,
--   4 lifetime of the meta key (ms), 5 and 6 known epoch and offset (0: none), 7 '1' to do nothing
--   unless the server knows less than the node, '2' to do nothing if the server's epoch is a later
--   one than the known one, '' to start a stream in any case.
-- Returns epoch and newest offset as one text.

local known_epoch = tonumber(ARGV[5])
local has_later = epoch > known_epoch
if ARGV[7] == '1' and not is_behind(known_epoch, tonumber(ARGV[6])) or ARGV[7] == '2' and has_later then
  return struct.pack('>I8I8', epoch, top)
end
begin_epoch(known_epoch)
redis.call('SET', meta, struct.pack('>I8I8', epoch, top) .. fences, 'PX', ARGV[4])
redis.call('PUBLISH', ARGV[1], ARGV[2] .. struct.pack('>I8I8', epoch, now) .. ARGV[3])
return struct.pack('>I8I8', epoch, top)
