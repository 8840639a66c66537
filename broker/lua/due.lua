-- Sessions that fall due within a while. Entries that are not their states' own are put right, or go.
--
-- KEYS  deadlines
-- ARGV  1 ahead_ms, 2 limit, 3 the session keys' prefix
-- Returns {how many were put right, id, deadline_ms, ...}, earliest first.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- What a stored state says of itself; false where there is none, or none that falls due.
local function deadline_of(id)
  local beginning = redis.pcall('GETRANGE', ARGV[3] .. id, 0, 199)
  if type(beginning) == 'table' then
    if string.find(beginning.err, 'WRONGTYPE', 1, true) then
      return false -- a key of somebody else's
    end
    error(beginning.err, 0)
  end
  local its_id, deadline = string.match(beginning,
    '^{"session_id":"([%x-]+)","epoch":"%w+","version":%d+,"commit":"[%w_-]+","deadline_ms":(%d+),')
  return its_id == id and deadline
end

local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now + integer(ARGV[1]), 'WITHSCORES', 'LIMIT', 0, ARGV[2])
local found, put_right = { 0 }, 0
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
    -- Tidying up; where Redis takes no writes it is left for later.
    local reply = own and redis.pcall('ZADD', KEYS[1], own, id) or redis.pcall('ZREM', KEYS[1], id)
    if type(reply) ~= 'table' then
      put_right = put_right + 1
    end
  end
end
found[1] = put_right
return found
