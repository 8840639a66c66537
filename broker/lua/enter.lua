-- Let one more into what has a limit, counted over all processes that are alive.
--
-- KEYS  the counts by process
-- ARGV  1 process, 2 limit, 3 what a process's sign of life begins with, 4 how long that lasts in ms
-- Returns 1 if there was room, and then counts one more, else 0.

local key, process, limit = KEYS[1], ARGV[1], integer(ARGV[2])
local inside, lasts = 0, integer(ARGV[4], 1)
local writes = { { 'HINCRBY', key, process, 1 }, { 'EXPIRE', key, 86400 } }
local counts, cuts = redis.call('HGETALL', key), {}
for i = 1, #counts, 2 do
  local left = redis.call('PTTL', ARGV[3] .. counts[i])
  if left > lasts then
    cuts[#cuts + 1] = { 'PEXPIRE', ARGV[3] .. counts[i], lasts } -- it is from before TIME was set back
  end
  if counts[i] == process or left > 0 then
    inside = inside + integer(counts[i + 1], -9007199254740991)
  else
    writes[#writes + 1] = { 'HDEL', key, counts[i] } -- it died with all that it had
  end
end
if inside >= limit then
  return 0, cuts[1] and cuts
end
for i = 1, #cuts do
  writes[#writes + 1] = cuts[i]
end
return 1, writes
