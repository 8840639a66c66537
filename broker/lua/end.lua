-- Remove a session and publish that: one that was kept long enough, or one that is deleted by request.
--
-- KEYS  session, events, deadlines, sessions, presence, [what is kept of the request]
-- ARGV  1 id, 2 channel, 3 'lapsed' or 'deleted', 4 what a deleted one begins with ('' if there was none),
--       5 record of the request or '', 6 that is kept for so many ms
-- Constants  BEGINNING_BYTES, LAPSE_GRACE_MS (the key is kept so long after the lapse)
--       PUBLISH (the command that publishes)
-- Returns 1 if there was such a session, else 0; the record that was kept if the request was done before.

local session, events, deadlines, sessions, presence, record_key = unpack(KEYS)
local id, channel, how, expected, record, record_kept_ms = unpack(ARGV)
-- An entry that is earlier than the lapse of its state by more than this is not the state's own.
local MUCH_EARLIER_MS = 1000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local done = record_key and redis.call('GET', record_key)
if done == record then
  return 0 -- it was ourselves, and there was none
elseif done then
  return done
end
local beginning, is_foreign = beginning_of(session, BEGINNING_BYTES)
if is_foreign and how == 'lapsed' then
  -- The key is another program's, so that these entries belong to no session.
  return 0, { { 'ZREM', deadlines, id }, { 'ZREM', sessions, id } }
end
local epoch = epoch_of(id, beginning)
-- Both are read even where the answer is of no use: that makes sure that they are sorted sets.
local lapse, _ = redis.call('ZSCORE', sessions, id), redis.call('ZSCORE', deadlines, id)
local is_it
if how == 'lapsed' then
  is_it = lapse and tonumber(lapse) <= now
  -- The state itself lapses with its key, a little later: an entry that is much earlier is not its own.
  local left = redis.call('PTTL', session)
  if is_it and left > LAPSE_GRACE_MS + MUCH_EARLIER_MS then
    return 0, { { 'ZADD', sessions, string.format('%.0f', now + left - LAPSE_GRACE_MS), id } }
  end
elseif epoch then
  is_it = expected ~= '' and string.sub(beginning, 1, #expected) == expected
  if not is_it and epoch == epoch_of(id, expected) then
    return 0 -- it has moved: the caller has to decide again
  end
else
  -- There is none, or something else than a state of this session, of whatever type: it is removed, and
  -- nothing is published.
  is_it = true
end
-- A Redis without memory takes all of these: it checks the first alone, and that needs none.
local writes = {}
if is_it then
  writes = {
    { 'DEL', session },
    { 'DEL', events },
    { 'DEL', presence },
    { 'ZREM', deadlines, id },
    { 'ZREM', sessions, id },
  }
end
if record_key then
  writes[#writes + 1] = { 'SET', record_key, record, 'PX', integer(record_kept_ms, 1) }
end
if is_it and epoch then
  writes[#writes + 1] = {
    PUBLISH,
    channel,
    '{"type":"SESSION_DELETED","sessionId":"' .. id .. '","timestamp":' .. string.format('%.0f', now)
      .. ',"epoch":"' .. epoch .. '","deleted":true}',
  }
end
if not writes[1] then
  return 0
end
return is_it and epoch and 1 or 0, writes
