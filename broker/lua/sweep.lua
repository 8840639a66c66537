-- Withdraw for a process that is no more what it said of a session, or forget that process.
--
-- KEYS  its sign of life, its sessions, the processes, [presence of the session]
-- ARGV  1 process, 2 session id ('' : forget the process, if it has no sessions), 3 '1' if these are its last fields,
--       4 channel, 5 message, 6.. fields
-- Constants  LIFE_SIGN_MS (no sign lasts longer), SWEPT_BELOW_MS (with less left its process has died)
--       PUBLISH (the command that publishes)
-- Returns 1 if that was done, 0 if there was nothing to do, -1 if the process lives.

local life_sign, its_sessions, processes, presence = unpack(KEYS)
local process, id, is_last, channel, message = unpack(ARGV, 1, 5)
local FIRST_FIELD = 6
local left = redis.call('PTTL', life_sign)
if left > LIFE_SIGN_MS then
  return -1, { { 'PEXPIRE', life_sign, LIFE_SIGN_MS } } -- it is from before TIME was set back
elseif left >= SWEPT_BELOW_MS then
  return -1
end
local writes = {}
if id == '' then
  local is_known = redis.call('HEXISTS', processes, process) == 1
  if not is_known or redis.call('EXISTS', its_sessions) == 1 then
    return 0
  end
  writes[1] = { 'HDEL', processes, process }
else
  if redis.call('HEXISTS', its_sessions, id) == 0 then
    return 0 -- somebody else was faster
  end
  if ARGV[FIRST_FIELD] then
    local _ = redis.call('HEXISTS', presence, ARGV[FIRST_FIELD]) -- that makes sure that it is a hash
    writes[1] = { 'HDEL', presence, unpack(ARGV, FIRST_FIELD) }
  end
  if is_last == '1' then
    writes[#writes + 1] = { 'HDEL', its_sessions, id }
    writes[#writes + 1] = { PUBLISH, channel, message }
  end
end
-- A process that lives after all learns by this that others take it for dead, and says everything again.
writes[#writes + 1] = { 'DEL', life_sign }
return 1, writes
