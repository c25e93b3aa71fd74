-- Shared beginning of the scripts. Each works on the keys of one topic:
--   list   the stored envelopes, the newest one last
--   meta   epoch (8 bytes), newest offset (8), and up to 16 fences of 24 bytes (see append.lua)
-- All numbers are big-endian. Numbers of Lua are exact below 2^53; all of ours are.
local list, meta = KEYS[1], KEYS[2]
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)

local epoch, top, fences = 0, 0, ''
local kept = redis.pcall('GET', meta)
-- A value of another length or type is not ours. It counts as lost.
if kept and #kept >= 16 and (#kept - 16) % 24 == 0 then
  epoch, top = struct.unpack('>I8I8', kept)
  if #kept > 16 then
    fences = string.sub(kept, 17)
  end
elseif type(kept) == 'table' and not string.find(kept.err, 'WRONGTYPE', 1, true) then
  return kept
end

-- Returns true if the node knows a later position than the server does. The server then has lost
-- its memory, or its last writes in a failover.
local function is_behind(known_epoch, known_offset)
  return epoch == 0 or known_epoch > epoch or (known_epoch == epoch and known_offset > top)
end

-- Begins a stream whose epoch is larger than all known ones. If only the meta key was lost, the
-- newest entry tells the epoch before. Removes the list, whatever it holds.
local function begin_epoch(known_epoch)
  local entries = redis.pcall('LRANGE', list, -1, -1)
  local newest, last_epoch = entries[1], 0
  if newest and #newest > 19 then
    local stamp = 20 + string.byte(newest, 19)
    if #newest >= stamp + 31 then
      last_epoch = struct.unpack('>I8', newest, stamp)
    end
  end
  epoch = math.max(now, epoch + 1, known_epoch + 1, last_epoch + 1)
  top = 0
  -- After a first write, a server whose memory is full lets a script write more. So nothing is
  -- written where there is nothing to remove.
  if newest or entries.err then
    redis.call('DEL', list)
  end
end
