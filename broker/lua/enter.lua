-- Let one more into what has a limit, counted over all processes that are alive.
--
-- KEYS  the counts by process, [the sign of life of a process, ...]
-- ARGV  1 process, 2 limit, 3.. the processes whose signs these are
-- Constants  LIFE_SIGN_MS (no sign lasts longer), OCCUPANCY_KEPT_S
-- Returns {1 if there was room, and then counts one more, else 0, a process that has died, ...}.
--       Where others have counts than these processes {-1, every process that has one}, and nothing is decided.

local key = KEYS[1]
local process, limit_text = ARGV[1], ARGV[2]
local FIRST_PROCESS = 3
local limit = integer(limit_text)
local inside = 0
local writes = { { 'HINCRBY', key, process, 1 }, { 'EXPIRE', key, OCCUPANCY_KEPT_S } }
local counts, cuts, signs = redis.call('HGETALL', key), {}, {}
local dead, unknown = {}, { -1 }
for i = FIRST_PROCESS, #ARGV do
  signs[ARGV[i]] = KEYS[i - FIRST_PROCESS + 2]
end
for i = 1, #counts, 2 do
  local its_process = counts[i]
  local life_sign = signs[its_process]
  if its_process == process then
    inside = inside + integer(counts[i + 1], -9007199254740991)
  elseif not life_sign then
    unknown[#unknown + 1] = its_process
  else
    local left = redis.call('PTTL', life_sign)
    if left > LIFE_SIGN_MS then
      cuts[#cuts + 1] = { 'PEXPIRE', life_sign, LIFE_SIGN_MS } -- it is from before TIME was set back
    end
    if left > 0 then
      inside = inside + integer(counts[i + 1], -9007199254740991)
    else
      dead[#dead + 1] = its_process
      writes[#writes + 1] = { 'HDEL', key, its_process } -- the process has died with all that it had
    end
  end
end
if unknown[2] then
  return unknown
end
if inside >= limit then
  return { 0, unpack(dead) }, cuts[1] and cuts
end
for i = 1, #cuts do
  writes[#writes + 1] = cuts[i]
end
return { 1, unpack(dead) }, writes
