-- Enter a process among those that say who is present, or note that the store has all that it says.
--
-- Its mark is what it recognises by that nothing was lost: one that begins with - says that not all is there yet.
--
-- KEYS  the processes
-- ARGV  1 process, 2 the mark that it must have ('' : any, and one that says that all is there stays), 3 its new mark
-- Constants  KEPT_S
-- Returns the mark that it has now; '' where it had another one than it must have.

local processes = KEYS[1]
local process, expected, mark = unpack(ARGV)
local known = redis.call('HGET', processes, process)
if expected ~= '' and known ~= expected then
  return ''
end
local expiry = { 'EXPIRE', processes, KEPT_S }
if expected == '' and known and string.sub(known, 1, 1) ~= '-' then
  return known, { expiry }
end
return mark, { { 'HSET', processes, process, mark }, expiry }
