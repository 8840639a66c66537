-- Remove a session and publish that: one that was kept long enough, or the one that somebody deletes.
--
-- KEYS  session, events, deadlines, sessions, [what is kept of the request]
-- ARGV  1 id, 2 channel, 3 'lapsed' or 'deleted', 4 what a deleted one begins with ('' if there was none),
--       5 record of the request or '', 6 that is kept for so many ms, 7 kept after the lapse in ms
-- Returns 1 if there was such a session, else 0; the record that was kept if the request was done before.

local session, events, deadlines, sessions, record = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, expected = ARGV[1], ARGV[4]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local done = record and redis.call('GET', record)
if done == ARGV[5] then
  return 0 -- it was ourselves, and there was none
elseif done then
  return done
end
local beginning, is_foreign = beginning_of(session, 200)
if is_foreign and ARGV[3] == 'lapsed' then
  return 0, { { 'ZREM', deadlines, id }, { 'ZREM', sessions, id } } -- the key is somebody else's, the entries are nobody's
end
local epoch = epoch_of(id, beginning)
-- Both are asked for also where the answer is of no use: so they are sorted sets.
local lapse, _ = redis.call('ZSCORE', sessions, id), redis.call('ZSCORE', deadlines, id)
local is_it
if ARGV[3] == 'lapsed' then
  is_it = lapse and tonumber(lapse) <= now
  -- The state itself lapses with its key, a little later: an entry that is much earlier is not its own.
  local left = redis.call('PTTL', session)
  if is_it and left > integer(ARGV[7]) + 1000 then
    return 0, { { 'ZADD', sessions, string.format('%.0f', now + left - ARGV[7]), id } }
  end
elseif epoch then
  is_it = expected ~= '' and string.sub(beginning, 1, #expected) == expected
  if not is_it and epoch == epoch_of(id, expected) then
    return 0 -- it has moved: whoever deletes it is to decide again
  end
else
  is_it = true -- there is none, or what is no state of this session, of whatever type: gone without a word
end
-- A Redis without memory takes all of these: it looks at the first alone, and that needs none.
local writes = {}
if is_it then
  writes = {
    { 'DEL', session },
    { 'DEL', events },
    { 'ZREM', deadlines, id },
    { 'ZREM', sessions, id },
  }
end
if record then
  writes[#writes + 1] = { 'SET', record, ARGV[5], 'PX', integer(ARGV[6], 1) }
end
if is_it and epoch then
  writes[#writes + 1] = {
    'PUBLISH',
    ARGV[2],
    '{"type":"SESSION_DELETED","sessionId":"' .. id .. '","timestamp":' .. string.format('%.0f', now)
      .. ',"epoch":"' .. epoch .. '","deleted":true}',
  }
end
if not writes[1] then
  return 0
end
return is_it and epoch and 1 or 0, writes
