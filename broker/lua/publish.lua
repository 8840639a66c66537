-- Send a message to the clients of a session, if there is one, and once.
--
-- KEYS  session, [what is kept of the request]
-- ARGV  1 channel, 2 message, 3 record of the request or '', 4 kept for so many ms
-- Returns 1; 0 if there is no such session; the record that was kept if the request was done before.

if KEYS[2] then
  local done = redis.call('GET', KEYS[2])
  if done then
    return done
  end
end
if redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
if KEYS[2] then
  redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[4])
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
return 1
