-- Let one more into what has a limit, counted over all processes that are alive.
--
-- KEYS  the counts by process
-- ARGV  1 process, 2 how many it would have with this one, 3 limit, 4 what a process's sign of life begins with
-- Returns 1 if there was room, else 0.

local others = 0
local counts = redis.call('HGETALL', KEYS[1])
for i = 1, #counts, 2 do
  if counts[i] ~= ARGV[1] then
    if redis.call('EXISTS', ARGV[4] .. counts[i]) == 1 then
      others = others + tonumber(counts[i + 1])
    else
      redis.call('HDEL', KEYS[1], counts[i]) -- it died with all that it had
    end
  end
end
if others + tonumber(ARGV[2]) > tonumber(ARGV[3]) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('EXPIRE', KEYS[1], 86400)
return 1
