-- Sessions that fall due within a while, and no more those whose state is long gone.
--
-- KEYS  deadlines
-- ARGV  1 ahead_ms, 2 limit, 3 the session keys' prefix
-- Returns {id, deadline_ms, ...}, earliest first.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now + integer(ARGV[1]), 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local kept = {}
for i = 1, #due, 2 do
  -- Somebody deleted it by hand: nobody could ever settle it.
  if tonumber(due[i + 1]) < now - 5000 and redis.call('EXISTS', ARGV[3] .. due[i]) == 0 then
    redis.pcall('ZREM', KEYS[1], due[i]) -- tidying up; where Redis takes no writes it is left for later
  else
    kept[#kept + 1] = due[i]
    kept[#kept + 1] = due[i + 1]
  end
end
return kept
