-- A session's state and the last of its events, of one instant.
--
-- KEYS  session, events
-- ARGV  1 id, 2 at most so many events, 3 at most so many bytes of them
-- Returns {state or nil, {event, ...}}: the events of the last versions up to the state's own, in their order.

local session, events = KEYS[1], KEYS[2]
local id, max_events, max_bytes = unpack(ARGV)
-- By MGET, to which a key of another type is none.
local state = redis.call('MGET', session)[1]
local its_id, version, commit
if state then
  its_id, version, commit = string.match(state,
    '^{"session_id":"([%x-]+)","epoch":"%w+","version":(%d+),"commit":"([%w_-]+)",')
end
if its_id ~= id then
  return { state, {} }
end
local last = integer(version, 1)
local first = math.max(1, last - integer(max_events) + 1)
local most, bytes, latest_first = integer(max_bytes), 0, {}

-- Take the event of this version, where it is the session's and there is room for it.
local function take(entry, its_version)
  -- A gap, or a last event that is not the state's own: the rest is of another history.
  if not entry or entry[1] ~= string.format('%.0f-0', its_version) then
    return false
  end
  local event = entry[2][2]
  bytes = bytes + #event
  if bytes > most
    or its_version == last and not string.find(event, '"commit":"' .. commit .. '"', 1, true) then
    return false
  end
  latest_first[#latest_first + 1] = event
  return true
end

local function take_slices()
  local to, count = last, 1
  while to >= first do
    -- A few at a time: an event may have 1,000 participants, and Redis serves nobody else meanwhile.
    local from = math.max(first, to - count + 1)
    local slice = redis.call('XRANGE', events, string.format('%.0f-0', from), string.format('%.0f-0', to))
    for i = to - from + 1, 1, -1 do
      if not take(slice[i], from + i - 1) then
        return
      end
    end
    to, count = from - 1, math.min(2 * count, 16)
  end
end

take_slices()
local in_order = {}
for i = #latest_first, 1, -1 do
  in_order[#in_order + 1] = latest_first[i]
end
return { state, in_order }
