-- Store and publish one decided change, if what it was decided on is still what is stored.
--
-- KEYS  session, events, deadlines, sessions, [what is kept of the request], [the window that it is counted in]
-- ARGV  1 id, 2 expected beginning ('' for a creation), 3 own beginning, 4 state, 5 now_ms, 6 due_ms or '',
--       7 deadline_ms or '', 8 lapses_at_ms, 9 '1' if it prolongs, 10 first version, 11 channel,
--       12 '1' if an earlier attempt may have come through, 13 kept after the lapse in ms, 14 events kept,
--       15 record of the request or '', 16 that is kept for so many ms,
--       17 how many the window allows or 0, 18 its length in ms, 19.. events
-- Returns {outcome, seconds, microseconds}: 'applied', 'conflict', 'wrong_time', 'limited' or 'unknown'; and TIME.
--       Of a request that was done before {'done', seconds, microseconds, record}.
--       Of one that was counted, or is one too many, also the count and the ms until the window's end.

local session, events, deadlines, sessions = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, expected, own, state = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local record = ARGV[15] ~= '' and KEYS[5]
local allowed = tonumber(ARGV[17])
local window = allowed > 0 and KEYS[#KEYS]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

local function answer(outcome)
  return { outcome, time[1], time[2] }
end

-- Checks come first, since a script that fails half-way is not rolled back.
if redis.call('GETRANGE', session, 0, #own - 1) == own then
  return answer('applied')
end
if record then
  local done = redis.call('GET', record)
  if done == ARGV[15] then
    return answer('applied') -- it was ourselves
  elseif done then
    return { 'done', time[1], time[2], done }
  end
end
local matches
if expected == '' then
  matches = redis.call('EXISTS', session) == 0
else
  matches = redis.call('GETRANGE', session, 0, #expected - 1) == expected
end
local first = tonumber(ARGV[10])
local last = first + #ARGV - 19
if not matches then
  if ARGV[12] == '1' then
    -- Was the earlier attempt applied, and others on top of it? Then its last event tells.
    local entry = redis.call('XRANGE', events, last .. '-0', last .. '-0')[1]
    if entry and string.find(entry[2][2], string.match(own, '"commit":"[^"]*"$'), 1, true) then
      return answer('applied')
    end
    -- Of a session that has been replaced since, nobody can tell.
    local epoch = string.match(own, '"epoch":"[^"]*"')
    if not string.find(redis.call('GETRANGE', session, 0, #own), epoch, 1, true) then
      return answer('unknown')
    end
  end
  return answer('conflict')
end
local instant = tonumber(ARGV[5])
if instant > now + 20 or instant < now - 2000 or (ARGV[6] ~= '' and tonumber(ARGV[6]) > now) then
  return answer('wrong_time')
end
-- Only what is applied is counted: what is refused, for whatever reason, takes nothing from the others.
local count, left
if window then
  left = redis.call('PTTL', window)
  if left > 0 then
    count = (tonumber(redis.call('GET', window)) or 0) + 1
  else
    count, left = 1, tonumber(ARGV[18])
  end
  if count > allowed then
    return { 'limited', time[1], time[2], count, left }
  end
end

local lapse = tonumber(ARGV[8])
if ARGV[9] ~= '1' then
  lapse = math.min(lapse, tonumber(redis.call('ZSCORE', sessions, id) or lapse))
end
if expected == '' then
  redis.call('DEL', events)
end
for i = 19, #ARGV do
  local entry = { 'XADD', events, 'MAXLEN', ARGV[14], (first + i - 19) .. '-0', 'event', ARGV[i] }
  if redis.pcall(unpack(entry)).err then
    -- Leftovers of another history (somebody restored a key by hand) give way to this one.
    redis.call('DEL', events)
    redis.call(unpack(entry))
  end
end
local expire_at = string.format('%.0f', lapse + tonumber(ARGV[13]))
redis.call('SET', session, state, 'PXAT', expire_at)
if record then
  redis.call('SET', record, ARGV[15], 'PX', ARGV[16])
end
if window then
  redis.call('SET', window, count, 'PX', left)
end
redis.call('PEXPIREAT', events, expire_at)
redis.call('ZADD', sessions, string.format('%.0f', lapse), id)
if ARGV[7] == '' then
  redis.call('ZREM', deadlines, id)
else
  redis.call('ZADD', deadlines, ARGV[7], id)
end
redis.call(
  'PUBLISH',
  ARGV[11],
  '{"type":"STATE_UPDATE","sessionId":"' .. id .. '","timestamp":' .. ARGV[5] .. ',"state":' .. state .. '}'
)
return { 'applied', time[1], time[2], count, left }
