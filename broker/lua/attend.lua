-- Say of some subjects how many clients a process has of them in a session, or that it has none, and tell all.
--
-- KEYS  presence of the session, the sessions of the process, the processes
-- ARGV  1 session id, 2 process, 3 channel, 4 message, 5 'there' or 'gone', 6 '1' if the process has somebody
--       else in the session, 7.. field, value, ... of those who are there, or the fields of those who are gone
-- Constants  KEPT_S
--       PUBLISH (the command that publishes)
-- Returns the mark of the process (see settled.lua); '' where it was not entered.

local presence, its_sessions, processes = unpack(KEYS)
local id, process, channel, message, how, has_others = unpack(ARGV, 1, 6)
local FIRST_FIELD = 7
-- All three are read even where the answer is of no use: that makes sure that they are hashes.
local known = redis.call('HGET', processes, process)
local _, _ = redis.call('HGET', presence, ARGV[FIRST_FIELD]), redis.call('HGET', its_sessions, id)
local writes
if how == 'there' then
  writes = {
    { 'HSET', presence, unpack(ARGV, FIRST_FIELD) },
    { 'HSET', its_sessions, id, '' },
  }
  if not known then
    writes[#writes + 1] = { 'HSET', processes, process, '-' }
  end
else
  writes = { { 'HDEL', presence, unpack(ARGV, FIRST_FIELD) } }
  if has_others ~= '1' then
    writes[#writes + 1] = { 'HDEL', its_sessions, id }
  end
end
for i = 1, #KEYS do
  writes[#writes + 1] = { 'EXPIRE', KEYS[i], KEPT_S }
end
writes[#writes + 1] = { PUBLISH, channel, message }
return known or '', writes
