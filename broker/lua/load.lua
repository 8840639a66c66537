-- The first of these states: one, and more as long as all of them together are not too large; or how large each is.
--
-- KEYS  sessions
-- ARGV  1 at most so many bytes in all; '' asks for the sizes
-- Returns {state or nil, ...}, for the first keys, in their order; or {bytes, ...}, for all of them.

local max_bytes = tonumber(ARGV[1])
local found, bytes = {}, 0
for i, key in ipairs(KEYS) do
  -- By MGET, to which a key of another type is none.
  local state = redis.call('MGET', key)[1]
  local size = state and #state or 0
  if max_bytes then
    bytes = bytes + size
    if i > 1 and bytes > max_bytes then
      break
    end
    found[i] = state
  else
    found[i] = size
  end
end
return found
