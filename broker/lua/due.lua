-- Sessions that fall due within a while. Entries that are not their states' own are put right, or go.
--
-- KEYS  deadlines
-- ARGV  1 ahead_ms, 2 limit, 3 what a session's key begins with, before the id
-- Constants  BEGINNING_BYTES
-- Returns {how many were put right, id, deadline_ms, ...}, earliest first.

local deadlines = KEYS[1]
local ahead_ms, limit, state_prefix = unpack(ARGV)
-- What is due has been settled long before that, where it could be.
local SETTLED_AFTER_MS = 5000
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- What a stored state says of itself; false where there is none, or none that falls due.
local function deadline_of(id)
  local its_id, deadline = string.match(beginning_of(state_prefix .. id, BEGINNING_BYTES),
    '^{"session_id":"([%x-]+)","epoch":"%w+","version":%d+,"commit":"[%w_-]+","deadline_ms":(%d+),')
  return its_id == id and deadline
end

local due = redis.call('ZRANGEBYSCORE', deadlines, '-inf', now + integer(ahead_ms), 'WITHSCORES', 'LIMIT', 0, limit)
local found, tidying = { 0 }, {}
for i = 1, #due, 2 do
  local id, score = due[i], tonumber(due[i + 1])
  local is_own, own = true, nil
  -- An instant is a whole number.
  if score < now - SETTLED_AFTER_MS or score % 1 ~= 0 then
    own = deadline_of(id)
    is_own = own and tonumber(own) == score
  end
  if is_own then
    found[#found + 1] = id
    found[#found + 1] = due[i + 1]
  else
    tidying[#tidying + 1] = own and { 'ZADD', deadlines, own, id } or { 'ZREM', deadlines, id }
  end
end
-- Where Redis takes no writes this is left for later, and what falls due is returned all the same. It is done
-- here, where nothing else can fail any more, since an error has to mean that nothing was changed.
for i = 1, #tidying do
  if type(redis.pcall(unpack(tidying[i]))) ~= 'table' then
    found[1] = found[1] + 1
  end
end
return found
