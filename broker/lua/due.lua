-- Which of these sessions fall due when the sorted set says so? Entries that are not their states' own are put
-- right, or go.
--
-- KEYS  deadlines, [a session, ...]
-- ARGV  the ids of these sessions
-- Constants  BEGINNING_BYTES
-- Returns {how many were put right, the id of an entry that was not its state's own, ...}.

local deadlines = KEYS[1]

-- What a stored state says of itself; false where there is none, or none that falls due.
local function deadline_of(key, id)
  local its_id, deadline = string.match(beginning_of(key, BEGINNING_BYTES),
    '^{"session_id":"([%x-]+)","epoch":"%w+","version":%d+,"commit":"[%w_-]+","deadline_ms":(%d+),')
  return its_id == id and deadline
end

local tidying, found = {}, { 0 }
for i, id in ipairs(ARGV) do
  local score = redis.call('ZSCORE', deadlines, id)
  local own = deadline_of(KEYS[i + 1], id)
  if score and not (own and tonumber(own) == tonumber(score)) then
    tidying[#tidying + 1] = own and { 'ZADD', deadlines, own, id } or { 'ZREM', deadlines, id }
    found[#found + 1] = id
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
