-- Which of these calls may this user not make? Redis 7.0 or newer makes none of them; an older one does.
--
-- ARGV  1 the calls as JSON: each does nothing where it is made
-- Returns {index, ...}, from 1.

local may = redis.acl_check_cmd
  or function(...)
    local reply = redis.pcall(...)
    local error = type(reply) == 'table' and reply.err or ''
    return not string.find(error, "The user executing the script can't", 1, true)
  end
local refused = {}
for index, call in ipairs(cjson.decode(ARGV[1])) do
  if not may(unpack(call)) then
    refused[#refused + 1] = index
  end
end
return refused
