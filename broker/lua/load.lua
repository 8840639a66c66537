-- The first of these states: one, and more as long as all of them together are not too large.
--
-- KEYS  sessions
-- ARGV  1 at most so many bytes in all
-- Returns {state or nil, ...}, for the first keys, in their order.

local max_bytes = tonumber(ARGV[1])
local states, bytes = {}, 0
for i, key in ipairs(KEYS) do
  -- By MGET, to which a key of another type is none.
  local state = redis.call('MGET', key)[1]
  bytes = bytes + (state and #state or 0)
  if i > 1 and bytes > max_bytes then
    break
  end
  states[i] = state
end
return states
