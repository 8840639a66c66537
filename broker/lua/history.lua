-- A session's beginning and some of its events, of one instant.
--
-- KEYS  session, events
-- ARGV  1 the first version that is wanted, 2 at most so many bytes of events, but one event at least
-- Constants  BEGINNING_BYTES
-- Returns {beginning, {entry, ...}}.

local session, events = KEYS[1], KEYS[2]
local first_version, max_bytes = unpack(ARGV)
local beginning = beginning_of(session, BEGINNING_BYTES)
local most, bytes, found = integer(max_bytes), 0, {}
local from, count = first_version .. '-0', 1
while true do
  -- A few at a time: an event may have 1,000 participants, and Redis serves nobody else meanwhile.
  local slice = redis.call('XRANGE', events, from, '+', 'COUNT', count)
  for _, entry in ipairs(slice) do
    bytes = bytes + #entry[2][2] + 1
    if #found > 0 and bytes > most then
      return { beginning, found }
    end
    found[#found + 1] = entry
  end
  if #slice < count or bytes > most then
    return { beginning, found }
  end
  from = '(' .. slice[#slice][1]
  count = math.min(2 * count, 16)
end
