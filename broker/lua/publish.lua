-- Send a message to the clients of a session, if there is one, and once.
--
-- KEYS  session, [what is kept of the request, [the same, by the name that version 0.1 looks for]]
-- ARGV  1 channel, 2 message, 3 record of the request or '', 4 kept for so many ms
-- Returns 1; 0 if there is no such session; the record that was kept if the request was done before.

local session, record = KEYS[1], KEYS[2]
if record then
  local done = redis.call('GET', record)
  if done then
    return done
  end
end
local beginning = beginning_of(session, 200)
if beginning == '' then
  return 0
end
local epoch = epoch_of(string.sub(session, -36), beginning) or ''
local writes = {}
for i = 2, #KEYS do
  local kept = '{"epoch":"' .. epoch .. '",' .. string.sub(ARGV[3], 2)
  writes[#writes + 1] = { 'SET', KEYS[i], kept, 'PX', integer(ARGV[4], 1) }
end
writes[#writes + 1] = { 'PUBLISH', ARGV[1], ARGV[2] }
return 1, writes
