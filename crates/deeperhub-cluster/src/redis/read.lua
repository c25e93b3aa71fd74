-- Reads messages of a stream.
--
-- KEYS: list, meta.
-- ARGV: 1 and 2 epoch and offset before the first message (0: none), 3 maximum number of messages,
--   4 maximum sum of their bytes, 5 lifetime of the meta key (ms) if a stream is to be begun for an
--   unknown topic, else '0'.
-- Returns epoch, newest offset and time as one text, the length of the list, '1' if the answer was
-- cut, and the envelopes: ascending after a position, else descending from the newest one.

local after_epoch = tonumber(ARGV[1])
if epoch == 0 then
  if ARGV[5] == '0' then
    return {struct.pack('>I8I8I8', 0, 0, now), 0, '0', {}}
  end
  begin_epoch(after_epoch)
  redis.call('SET', meta, struct.pack('>I8I8', epoch, top), 'PX', ARGV[5])
end

local length = redis.call('LLEN', list)
local first, last, step = math.max(length - tonumber(ARGV[3]), 0), length - 1, -1
if after_epoch == epoch then
  -- Position of the next offset in the list, whose last entry has the offset `top`.
  first = math.max(tonumber(ARGV[2]) - top + length, 0)
  last = math.min(first + tonumber(ARGV[3]), length) - 1
  step = 1
end

local entries, bytes, max_bytes = {}, 0, tonumber(ARGV[4])
local at, rest = step == 1 and first or last, last - first + 1
while rest > 0 and bytes < max_bytes do
  -- The size of entries is not known before they are read. Pieces follow the mean size so far.
  local piece = 8
  if #entries > 0 then
    piece = math.floor((max_bytes - bytes) * #entries / bytes)
  end
  piece = math.max(math.min(piece, rest, 128), 1)
  local from = step == 1 and at or at - piece + 1
  local read = redis.call('LRANGE', list, from, from + piece - 1)
  if #read == 0 then
    break
  end
  for index = step == 1 and 1 or #read, step == 1 and #read or 1, step do
    entries[#entries + 1] = read[index]
    bytes = bytes + #read[index]
  end
  at = at + step * piece
  rest = rest - piece
end
return {struct.pack('>I8I8I8', epoch, top, now), length, rest > 0 and '1' or '0', entries}
