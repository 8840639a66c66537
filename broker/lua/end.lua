-- Remove a session and publish that: the one of the given epoch, or, without one, a session kept long enough.
--
-- KEYS  session, events, deadlines, sessions
-- ARGV  1 id, 2 epoch or '', 3 channel
-- Returns 1 if there was such a session, else 0.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local beginning = redis.call('GETRANGE', KEYS[1], 0, 199)
local epoch = string.match(beginning, '^{"session_id":"[^"]*","epoch":"(%w*)"')
if ARGV[2] ~= '' then
  if epoch ~= ARGV[2] then
    return 0
  end
else
  local lapse = redis.call('ZSCORE', KEYS[4], ARGV[1])
  if not lapse or tonumber(lapse) > now then
    return 0
  end
end
redis.call('DEL', KEYS[1], KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
if not epoch then
  return 0
end
redis.call(
  'PUBLISH',
  ARGV[3],
  '{"type":"SESSION_DELETED","sessionId":"' .. ARGV[1] .. '","timestamp":' .. string.format('%.0f', now)
    .. ',"epoch":"' .. epoch .. '","deleted":true}'
)
return 1
