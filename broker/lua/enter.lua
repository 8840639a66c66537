-- Let one more into what has a limit, counted over all processes that are alive.
--
-- KEYS  the counts by process
-- ARGV  1 process, 2 limit, 3 what the key of a process's sign of life begins with, before its id
-- Constants  LIFE_SIGN_MS (no sign lasts longer), OCCUPANCY_KEPT_S
-- Returns 1 if there was room, and then counts one more, else 0.

local key = KEYS[1]
local process, limit_text, life_sign_prefix = unpack(ARGV)
local limit = integer(limit_text)
local inside = 0
local writes = { { 'HINCRBY', key, process, 1 }, { 'EXPIRE', key, OCCUPANCY_KEPT_S } }
local counts, cuts = redis.call('HGETALL', key), {}
for i = 1, #counts, 2 do
  local life_sign = life_sign_prefix .. counts[i]
  local left = redis.call('PTTL', life_sign)
  if left > LIFE_SIGN_MS then
    cuts[#cuts + 1] = { 'PEXPIRE', life_sign, LIFE_SIGN_MS } -- it is from before TIME was set back
  end
  if counts[i] == process or left > 0 then
    inside = inside + integer(counts[i + 1], -9007199254740991)
  else
    writes[#writes + 1] = { 'HDEL', key, counts[i] } -- the process has died with all that it had
  end
end
if inside >= limit then
  return 0, cuts[1] and cuts
end
for i = 1, #cuts do
  writes[#writes + 1] = cuts[i]
end
return 1, writes
