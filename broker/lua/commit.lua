-- Store and publish one decided change, if what it was decided on is still what is stored.
--
-- KEYS  session, events, deadlines, sessions, the last epoch,
--       [what is kept of the request, [the same, by the name that version 0.1 looks for]],
--       [the window that it is counted in]
-- ARGV  1 id, 2 expected beginning ('' for a creation), 3 own beginning, 4 state, 5 now_ms, 6 due_ms or '',
--       7 deadline_ms or '', 8 lapses_at_ms, 9 '1' if it prolongs, 10 first version, 11 channel,
--       12 '1' if an earlier attempt may have come through, 13 '1' if leftovers are to be looked for,
--       14 record of the request or '', 15 that is kept for so many ms, 16 how many the window allows or 0,
--       17 its length in ms, 18 the last instant of the state that is changed, 19 the UPDATE that is published behind
--       the state or '', 20.. events
-- Constants  KEPT_EVENTS, MAX_AHEAD_MS, MAX_BEHIND_MS, LAPSE_GRACE_MS (the key is kept so long after the lapse)
--       PUBLISH (the command that publishes)
-- Returns {outcome, seconds, microseconds}: 'applied', 'conflict', 'wrong_time', 'limited' or 'unknown'; and TIME.
--       Of a request that was done before {'done', seconds, microseconds, record}; of a creation whose epoch is not
--       above the last one {'epoch_too_low', seconds, microseconds, the last one}.
--       Of one that was counted, or is one too many, also the count and the ms until the window's end.

local session, events, deadlines, sessions, epoch_key = unpack(KEYS, 1, 5)
local id, expected, own, state, now_text, due, deadline, lapses_at, prolongs, first_version, channel,
  is_retry, looks_for_leftovers, record, record_kept_ms, window_allows, window_ms, not_before,
  update = unpack(ARGV, 1, 19)
local FIRST_EVENT = 20
local record_key = record ~= '' and KEYS[6]
local allowed = integer(window_allows)
local window = allowed > 0 and KEYS[#KEYS]
local last_record = window and #KEYS - 1 or #KEYS
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function answer(outcome)
  return { outcome, time[1], time[2] }
end

-- Byte by byte: Lua compares strings by the locale that redis-server runs in, and in some z is not the last letter.
local function is_above(epoch, other)
  for i = 1, #epoch do
    local byte, its = string.byte(epoch, i), string.byte(other, i) or 0
    if byte ~= its then
      return byte > its
    end
  end
  return false
end

local beginning = beginning_of(session, math.max(#own, #expected))
if string.sub(beginning, 1, #own) == own then
  return answer('applied')
end
if record_key then
  local done = redis.call('GET', record_key)
  if done == record then
    return answer('applied') -- it was ourselves
  elseif done then
    return { 'done', time[1], time[2], done }
  end
end
local matches
if expected == '' then
  matches = redis.call('EXISTS', session) == 0 -- whatever it is, of whatever type, it is not overwritten
else
  matches = string.sub(beginning, 1, #expected) == expected
end
local first = integer(first_version, 1)
local last = first + #ARGV - FIRST_EVENT
if not matches then
  if is_retry == '1' then
    -- Was the earlier attempt applied, and others on top of it? Then its last event is kept.
    local entry = redis.call('XRANGE', events, last .. '-0', last .. '-0')[1]
    if entry and string.find(entry[2][2], string.match(own, '"commit":"[^"]*"$'), 1, true) then
      return answer('applied')
    end
    -- Where the session has been replaced since, nobody can tell.
    local epoch = string.match(own, '"epoch":"[^"]*"')
    if not string.find(beginning, epoch, 1, true) then
      return answer('unknown')
    end
  end
  return answer('conflict')
end
local own_epoch = expected == '' and epoch_of(id, own)
if own_epoch then
  local last_epoch = redis.call('GET', epoch_key)
  -- What is no epoch is another program's or damaged: it is overwritten. One that begins with z (the year 5099 and
  -- later) is none either: there would be no room above it.
  local is_epoch = last_epoch and string.match(last_epoch, '^[0-9a-y]' .. string.rep('[0-9a-z]', 12) .. '$')
  if is_epoch and not is_above(own_epoch, last_epoch) then
    -- The earlier attempt may have been applied, and its session deleted since: it must not come back. A record
    -- would still be there.
    if is_retry == '1' and not record_key then
      return answer('unknown')
    end
    return { 'epoch_too_low', time[1], time[2], last_epoch }
  end
end
-- Where TIME was set back it may be behind the state: a change of it is dated at the state's own last instant.
local instant, last_instant = integer(now_text), integer(not_before)
if instant > math.max(now + MAX_AHEAD_MS, last_instant) or instant < now - MAX_BEHIND_MS
  or (due ~= '' and integer(due) > math.max(now, last_instant)) then
  return answer('wrong_time')
end
-- Only what is applied is counted: what is refused, for whatever reason, takes nothing from others.
local count, left
if window then
  left = redis.call('PTTL', window)
  -- With more left than its length it is from before TIME was set back.
  if left > 0 and left <= integer(window_ms, 1) then
    count = integer(redis.call('GET', window) or 0) + 1
  else
    count, left = 1, integer(window_ms, 1)
  end
  if count > allowed then
    return { 'limited', time[1], time[2], count, left }
  end
end

-- Both are read even where the answer is of no use: that makes sure that they are sorted sets.
local known_lapse, known_deadline = redis.call('ZSCORE', sessions, id), redis.call('ZSCORE', deadlines, id)
local lapse = integer(lapses_at)
if prolongs ~= '1' then
  local known = tonumber(known_lapse or '')
  if known and known >= now and known < math.huge then
    lapse = math.min(lapse, math.floor(known))
  else
    -- There is none, or it is past or no instant: another program's, perhaps. The key's expiry tells what it was.
    local left = redis.call('PTTL', session)
    if left > 0 then
      lapse = math.min(lapse, now + left - LAPSE_GRACE_MS)
    end
  end
end
local expire_at = lapse + LAPSE_GRACE_MS

-- Leftovers of another history (of a session deleted by hand, or from before a key was restored) give way to this
-- one. They are looked for where one refused this change: a stream takes no version that is not above its last.
local has_leftovers = expected == ''
if not has_leftovers and looks_for_leftovers == '1' and redis.call('EXISTS', events) == 1 then
  local stream = redis.call('XINFO', 'STREAM', events)
  for i = 1, #stream, 2 do
    if stream[i] == 'last-generated-id' then
      has_leftovers = tonumber(string.match(stream[i + 1], '^%d+')) >= first
    end
  end
end
local writes = {}
if has_leftovers then
  writes[1] = { 'SET', session, state, 'PXAT', expire_at }
  writes[2] = { 'DEL', events }
end
for i = FIRST_EVENT, #ARGV do
  writes[#writes + 1] =
    { 'XADD', events, 'MAXLEN', KEPT_EVENTS, (first + i - FIRST_EVENT) .. '-0', 'event', ARGV[i] }
end
if not has_leftovers then
  writes[#writes + 1] = { 'SET', session, state, 'PXAT', expire_at }
end
if own_epoch then
  writes[#writes + 1] = { 'SET', epoch_key, own_epoch }
end
for i = 6, last_record do
  writes[#writes + 1] = { 'SET', KEYS[i], record, 'PX', integer(record_kept_ms, 1) }
end
if window then
  writes[#writes + 1] = { 'SET', window, count, 'PX', left }
end
writes[#writes + 1] = { 'PEXPIREAT', events, expire_at }
writes[#writes + 1] = { 'ZADD', sessions, lapse, id }
if deadline ~= '' then
  writes[#writes + 1] = { 'ZADD', deadlines, integer(deadline), id }
elseif known_deadline then
  writes[#writes + 1] = { 'ZREM', deadlines, id }
end
-- As lockstep/wire/payloads.py has it. In one go, so that the UPDATE is copied once.
local opening, ending, length = '', '}', ''
if update ~= '' then
  opening, ending, length = ',"update":', ',"updateBytes":"', string.format('%08d"}', #update)
end
writes[#writes + 1] = {
  PUBLISH,
  channel,
  '{"type":"STATE_UPDATE","sessionId":"' .. id .. '","timestamp":' .. now_text .. ',"state":' .. state
    .. opening .. update .. ending .. length,
}
return { 'applied', time[1], time[2], count, left }, writes
