-- Appends a message to a stream, and publishes it to the nodes that follow the topic.
--
-- KEYS: list, meta, and for a publish with `once` two hashes, see below.
-- ARGV: 1 channel, 2 and 3 the envelope before and after the fields that this script fills in,
--   4 maximum number of messages, 5 lifetime of the list, 6 lifetime of the meta key (ms),
--   7 and 8 known epoch and offset (0: none), 9 '1' for a message that may have been appended,
--   10 and 11 user and text of `once`.
-- Returns the fields that it filled in (epoch, offset, previous offset, time), and a further byte
-- if they are those of an earlier publish with the same `once`. Returns false for a late original, and
-- for a resent message that was appended and has left the list.

-- A node that lost its connection sends its unconfirmed messages again on a new one, marked as
-- resent. The server may have taken them on the old connection already, or may still take them
-- later, from a buffer or a delayed packet. So each append leaves a fence: incarnation of the node
-- (8 bytes), sequence (8), time (8). The node's messages come in the order of their sequences. Of
-- those up to the fence, a message that is not marked is a late original, and a marked one was
-- appended. The fences of the 16 nodes that appended last are kept.
local resent = ARGV[9] == '1'
local own = string.sub(ARGV[2], 3, 10)
local sequence = struct.unpack('>I8', ARGV[2], 11)
local fence, fenced = nil, 0
for at = 1, #fences, 24 do
  if string.sub(fences, at, at + 7) == own then
    fence, fenced = at, struct.unpack('>I8', fences, at + 8)
    break
  end
end
local was_appended = sequence <= fenced
if was_appended and not resent then
  return false
end
local others = fences
if fence then
  others = string.sub(fences, 1, fence - 1) .. string.sub(fences, fence + 24)
end
others = string.sub(others, 1, 15 * 24)

local known_epoch = tonumber(ARGV[7])
if is_behind(known_epoch, tonumber(ARGV[8])) then
  begin_epoch(known_epoch)
  was_appended = false
elseif resent and (was_appended or not fence) then
  -- Other nodes may have appended many messages since. An incarnation's messages have ascending
  -- sequences, so an earlier one of them ends the search. That of a batch's next message is short.
  local length, last, piece = #ARGV[2], -1, 8
  while last and last > -16384 do
    local entries = redis.call('LRANGE', list, last - piece + 1, last)
    -- An earlier entry than the oldest one is the oldest one again.
    last = #entries == piece and last - piece
    piece = 512
    for index = #entries, 1, -1 do
      local entry = entries[index]
      if string.sub(entry, 1, length) == ARGV[2] then
        return string.sub(entry, length + 1, length + 32)
      elseif string.sub(entry, 3, 10) == own and struct.unpack('>I8', entry, 11) < sequence then
        last = nil
        break
      end
    end
  end
end
fences = own .. struct.pack('>I8I8', sequence, now) .. others

-- The hashes remember publishes with `once`, each those of every second period of two minutes.
-- They map a digest of user and text to what the script returned.
local current, field, user
if KEYS[3] then
  local period = math.floor(now / 120000)
  local previous
  current, previous = KEYS[3 + period % 2], KEYS[4 - period % 2]
  user = redis.sha1hex(ARGV[10])
  field = string.sub(redis.sha1hex(user .. ARGV[11]), 1, 32)
  user = string.sub(user, 1, 16)
  local found = redis.call('HGET', current, field) or redis.call('HGET', previous, field)
  if found and #found == 32 then
    local its_epoch, _, _, time = struct.unpack('>I8I8I8I8', found)
    if its_epoch == epoch and now - time < 120000 then
      return found .. '+'
    end
  end
end

-- Later messages have taken its place in the list, so its position is not known any more.
if was_appended then
  return false
end

local stamp = struct.pack('>I8I8I8I8', epoch, top + 1, top, now)
local entry = ARGV[2] .. stamp .. ARGV[3]
local limit = tonumber(ARGV[4])
-- The first write: if the server's memory is full, it fails here, and nothing has changed.
if redis.call('RPUSH', list, entry) > limit then
  redis.call('LTRIM', list, -limit, -1)
end
redis.call('SET', meta, struct.pack('>I8I8', epoch, top + 1) .. fences, 'PX', ARGV[6])
redis.call('PEXPIRE', list, ARGV[5])

-- Bounds memory: a topic remembers so many publishes at most, and so many of one user. Later ones
-- are appended and not remembered.
if current and redis.call('HLEN', current) < 32768
    and redis.call('HINCRBY', current, user, 1) <= 8192 then
  redis.call('HSET', current, field, stamp)
  redis.call('PEXPIREAT', current, (math.floor(now / 120000) + 2) * 120000)
end

redis.call('PUBLISH', ARGV[1], entry)
return stamp
