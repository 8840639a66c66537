-- Sessions that fall due within a while. Entries that are not their states' own are put right, or go.
--
-- KEYS  deadlines
-- ARGV  1 ahead_ms, 2 limit, 3 the session keys' prefix
-- Returns {how many were put right, id, deadline_ms, ...}, earliest first.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- What a stored state says of itself; false where there is none, or none that falls due.
local function deadline_of(id)
  local its_id, deadline = string.match(beginning_of(ARGV[3] .. id, 200),
    '^{"session_id":"([%x-]+)","epoch":"%w+","version":%d+,"commit":"[%w_-]+","deadline_ms":(%d+),')
  return its_id == id and deadline
end

local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now + integer(ARGV[1]), 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local found, tidying = { 0 }, {}
for i = 1, #due, 2 do
  local id, score = due[i], tonumber(due[i + 1])
  local is_own, own = true, nil
  -- What is due has been settled by then, where it could be; and an instant is a whole number.
  if score < now - 5000 or score % 1 ~= 0 then
    own = deadline_of(id)
    is_own = own and tonumber(own) == score
  end
  if is_own then
    found[#found + 1] = id
    found[#found + 1] = due[i + 1]
  else
    tidying[#tidying + 1] = own and { 'ZADD', KEYS[1], own, id } or { 'ZREM', KEYS[1], id }
  end
end
-- Where Redis takes no writes this is left for later; what falls due is told all the same. Only here, where
-- nothing can fail any more: an error is to say that nothing was changed.
for i = 1, #tidying do
  if type(redis.pcall(unpack(tidying[i]))) ~= 'table' then
    found[1] = found[1] + 1
  end
end
return found
