-- A session's beginning and some of its events, of one instant.
--
-- KEYS  session, events
-- ARGV  1 how much of the state is its beginning, in bytes, 2 the first version that is wanted,
--       3 at most so many bytes of events, but one event at least
-- Returns {beginning, {entry, ...}}.

local beginning = beginning_of(KEYS[1], integer(ARGV[1], 1))
local most, bytes, found = integer(ARGV[3]), 0, {}
local from, count = ARGV[2] .. '-0', 1
while true do
  -- A few at a time: an event may have 1,000 participants, and nobody else is served meanwhile.
  local slice = redis.call('XRANGE', KEYS[2], from, '+', 'COUNT', count)
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
