-- Count something in windows of time that begin with the first count. What comes after a limit is not counted.
--
-- KEYS  one for each window
-- ARGV  limit and window in ms, for each of them
-- Returns {count, ms until the window's end, ...}, up to the first that is over its limit.

local counts, writes = {}, {}
for i, key in ipairs(KEYS) do
  local limit, window_ms = integer(ARGV[2 * i - 1]), integer(ARGV[2 * i], 1)
  local count = integer(redis.call('GET', key) or 0) + 1
  local left = redis.call('PTTL', key)
  if left <= 0 or left > window_ms then
    -- A new window; also where the old one has more left than its length: it is from before TIME was set back.
    count, left = 1, window_ms
  end
  writes[i] = count > 1 and { 'INCRBY', key, 1 } or { 'SET', key, count, 'PX', left }
  counts[#counts + 1] = count
  counts[#counts + 1] = left
  if count > limit then
    break
  end
end
return counts, writes
