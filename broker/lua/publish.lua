-- Send a message to the clients of a session, if there is one, and once.
--
-- KEYS  session, [what is kept of the request]
-- ARGV  1 channel, 2 message, 3 record of the request or '', 4 kept for so many ms
-- Returns 1; 0 if there is no such session; the record that was kept if the request was done before.

local session, record = KEYS[1], KEYS[2]
local writes = { { 'PUBLISH', ARGV[1], ARGV[2] } }
if record then
  local done = redis.call('GET', record)
  if done then
    return done
  end
  table.insert(writes, 1, { 'SET', record, ARGV[3], 'PX', integer(ARGV[4], 1) })
end
if redis.call('EXISTS', session) == 0 then
  return 0
end
return 1, writes
