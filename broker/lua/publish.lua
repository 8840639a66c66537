-- Send a message to the clients of a session, or a notice to the processes that have them, if there is one, and once.
--
-- KEYS  session, [what is kept of the request, [the same, by the name that version 0.1 looks for]]
-- ARGV  1 id, 2 channel, 3 message, 4 record of the request or '', 5 kept for so many ms
-- Constants  BEGINNING_BYTES
--       PUBLISH (the command that publishes)
-- Returns 1; 0 if there is no such session; the record that was kept if the request was done before.

local session, record_key = KEYS[1], KEYS[2]
local id, channel, message, record, record_kept_ms = unpack(ARGV)
if record_key then
  local done = redis.call('GET', record_key)
  if done then
    return done
  end
end
local beginning = beginning_of(session, BEGINNING_BYTES)
if beginning == '' then
  return 0
end
local epoch = epoch_of(id, beginning) or ''
local writes = {}
for i = 2, #KEYS do
  local kept = '{"epoch":"' .. epoch .. '",' .. string.sub(record, 2)
  writes[#writes + 1] = { 'SET', KEYS[i], kept, 'PX', integer(record_kept_ms, 1) }
end
writes[#writes + 1] = { PUBLISH, channel, message }
return 1, writes
