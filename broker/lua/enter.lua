-- Let one more into what has a limit, counted over all processes that are alive.
--
-- KEYS  the counts by process
-- ARGV  1 process, 2 limit, 3 what a process's sign of life begins with
-- Returns 1 if there was room, and then counts one more, else 0.

local inside = 0
local counts = redis.call('HGETALL', KEYS[1])
for i = 1, #counts, 2 do
  if counts[i] == ARGV[1] or redis.call('EXISTS', ARGV[3] .. counts[i]) == 1 then
    inside = inside + tonumber(counts[i + 1])
  else
    redis.call('HDEL', KEYS[1], counts[i]) -- it died with all that it had
  end
end
if inside >= tonumber(ARGV[2]) then
  return 0
end
redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
redis.call('EXPIRE', KEYS[1], 86400)
return 1
