-- Store and publish one decided change, if what it was decided on is still what is stored.
--
-- KEYS  session, events, deadlines, sessions, the last epoch,
--       [what is kept of the request, [the same, by the name that version 0.1 looks for]],
--       [the window that it is counted in]
-- ARGV  1 id, 2 expected beginning ('' for a creation), 3 own beginning, 4 state, 5 now_ms, 6 due_ms or '',
--       7 deadline_ms or '', 8 lapses_at_ms, 9 '1' if it prolongs, 10 first version, 11 channel,
--       12 '1' if an earlier attempt may have come through, 13 '1' if leftovers are to be looked for,
--       14 kept after the lapse in ms, 15 events kept, 16 record of the request or '', 17 that is kept for so many ms,
--       18 how many the window allows or 0, 19 its length in ms, 20 the last instant of the state that is changed,
--       21.. events
-- Returns {outcome, seconds, microseconds}: 'applied', 'conflict', 'wrong_time', 'limited' or 'unknown'; and TIME.
--       Of a request that was done before {'done', seconds, microseconds, record}; of a creation whose epoch is not
--       above the last one {'epoch_too_low', seconds, microseconds, the last one}.
--       Of one that was counted, or is one too many, also the count and the ms until the window's end.

local session, events, deadlines, sessions = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, expected, own, state = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local record = ARGV[16] ~= '' and KEYS[6]
local allowed = integer(ARGV[18])
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
if record then
  local done = redis.call('GET', record)
  if done == ARGV[16] then
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
local first = integer(ARGV[10], 1)
local last = first + #ARGV - 21
if not matches then
  if ARGV[12] == '1' then
    -- Was the earlier attempt applied, and others on top of it? Then its last event tells.
    local entry = redis.call('XRANGE', events, last .. '-0', last .. '-0')[1]
    if entry and string.find(entry[2][2], string.match(own, '"commit":"[^"]*"$'), 1, true) then
      return answer('applied')
    end
    -- Of a session that has been replaced since, nobody can tell.
    local epoch = string.match(own, '"epoch":"[^"]*"')
    if not string.find(beginning, epoch, 1, true) then
      return answer('unknown')
    end
  end
  return answer('conflict')
end
local own_epoch = expected == '' and epoch_of(id, own)
if own_epoch then
  local last_epoch = redis.call('GET', KEYS[5])
  -- What is no epoch is somebody else's or damaged: it is overwritten. One that begins with z (the year 5099 and
  -- later) is none either: there would be no room above it.
  local is_epoch = last_epoch and string.match(last_epoch, '^[0-9a-y]' .. string.rep('[0-9a-z]', 12) .. '$')
  if is_epoch and not is_above(own_epoch, last_epoch) then
    -- The earlier attempt may have been applied, and its session deleted since: it is not to come back. A record
    -- would still be there.
    if ARGV[12] == '1' and not record then
      return answer('unknown')
    end
    return { 'epoch_too_low', time[1], time[2], last_epoch }
  end
end
-- Where TIME was set back it may be behind the state: what follows on it is dated at the state's own last instant.
local instant, not_before = integer(ARGV[5]), integer(ARGV[20])
if instant > math.max(now + 20, not_before) or instant < now - 2000
  or (ARGV[6] ~= '' and integer(ARGV[6]) > math.max(now, not_before)) then
  return answer('wrong_time')
end
-- Only what is applied is counted: what is refused, for whatever reason, takes nothing from the others.
local count, left
if window then
  left = redis.call('PTTL', window)
  -- With more left than its length it is from before TIME was set back.
  if left > 0 and left <= integer(ARGV[19], 1) then
    count = integer(redis.call('GET', window) or 0) + 1
  else
    count, left = 1, integer(ARGV[19], 1)
  end
  if count > allowed then
    return { 'limited', time[1], time[2], count, left }
  end
end

-- Both are asked for also where the answer is of no use: so they are sorted sets.
local known_lapse, known_deadline = redis.call('ZSCORE', sessions, id), redis.call('ZSCORE', deadlines, id)
local lapse = integer(ARGV[8])
if ARGV[9] ~= '1' then
  local known = tonumber(known_lapse or '')
  if known and known >= now and known < math.huge then
    lapse = math.min(lapse, math.floor(known))
  else
    -- There is none, or it is over or no instant: somebody else's, perhaps. When the key expires tells what it was.
    local left = redis.call('PTTL', session)
    if left > 0 then
      lapse = math.min(lapse, now + left - integer(ARGV[14]))
    end
  end
end
local expire_at = lapse + integer(ARGV[14])

-- Leftovers of another history (of a session deleted by hand, or of before a key was restored) give way to this
-- one. They are looked for where one refused this change: it takes no version that is not above its last.
local has_leftovers = expected == ''
if not has_leftovers and ARGV[13] == '1' and redis.call('EXISTS', events) == 1 then
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
for i = 21, #ARGV do
  writes[#writes + 1] =
    { 'XADD', events, 'MAXLEN', integer(ARGV[15], 1), (first + i - 21) .. '-0', 'event', ARGV[i] }
end
if not has_leftovers then
  writes[#writes + 1] = { 'SET', session, state, 'PXAT', expire_at }
end
if own_epoch then
  writes[#writes + 1] = { 'SET', KEYS[5], own_epoch }
end
for i = 6, last_record do
  writes[#writes + 1] = { 'SET', KEYS[i], ARGV[16], 'PX', integer(ARGV[17], 1) }
end
if window then
  writes[#writes + 1] = { 'SET', window, count, 'PX', left }
end
writes[#writes + 1] = { 'PEXPIREAT', events, expire_at }
writes[#writes + 1] = { 'ZADD', sessions, lapse, id }
if ARGV[7] ~= '' then
  writes[#writes + 1] = { 'ZADD', deadlines, integer(ARGV[7]), id }
elseif known_deadline then
  writes[#writes + 1] = { 'ZREM', deadlines, id }
end
writes[#writes + 1] = {
  'PUBLISH',
  ARGV[11],
  '{"type":"STATE_UPDATE","sessionId":"' .. id .. '","timestamp":' .. ARGV[5] .. ',"state":' .. state .. '}',
}
return { 'applied', time[1], time[2], count, left }, writes
