-- Remove a session and publish that: the one of the given epoch, or, without one, a session kept long enough.
--
-- KEYS  session, events, deadlines, sessions
-- ARGV  1 id, 2 epoch or '', 3 channel
-- Returns 1 if there was such a session, else 0.

local session, events, deadlines, sessions = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local beginning = redis.call('GETRANGE', session, 0, 199)
local epoch = string.match(beginning, '^{"session_id":"[^"]*","epoch":"(%w*)"')
-- Both are asked for also where the answer is of no use: so they are sorted sets.
local lapse, _ = redis.call('ZSCORE', sessions, ARGV[1]), redis.call('ZSCORE', deadlines, ARGV[1])
if ARGV[2] ~= '' then
  if epoch ~= ARGV[2] then
    return 0
  end
elseif not lapse or tonumber(lapse) > now then
  return 0
end
-- A Redis without memory takes all of these.
local writes = {
  { 'DEL', session },
  { 'DEL', events },
  { 'ZREM', deadlines, ARGV[1] },
  { 'ZREM', sessions, ARGV[1] },
}
if epoch then
  writes[5] = {
    'PUBLISH',
    ARGV[3],
    '{"type":"SESSION_DELETED","sessionId":"' .. ARGV[1] .. '","timestamp":' .. string.format('%.0f', now)
      .. ',"epoch":"' .. epoch .. '","deleted":true}',
  }
end
return epoch and 1 or 0, writes
