-- Count something in windows of time that begin with the first count. What comes after a limit is not counted.
--
-- KEYS  one for each window
-- ARGV  limit and window in ms, for each of them
-- Returns {count, ms until the window's end, ...}, up to the first that is over its limit.

local standing = {}
for i, key in ipairs(KEYS) do
  local count = redis.call('INCR', key)
  local left = redis.call('PTTL', key)
  if left < 0 then
    left = tonumber(ARGV[2 * i])
    redis.call('PEXPIRE', key, left)
  end
  standing[#standing + 1] = count
  standing[#standing + 1] = left
  if count > tonumber(ARGV[2 * i - 1]) then
    break
  end
end
return standing
