-- Which of these calls may this user not make? None is made by Redis 7.0 or newer; an older one makes them.
--
-- ARGV  1 the calls as JSON: each does nothing where it is made
-- Returns {place, ...}, from 1.

local may = redis.acl_check_cmd
  or function(...)
    local reply = redis.pcall(...)
    local error = type(reply) == 'table' and reply.err or ''
    return not string.find(error, "The user executing the script can't", 1, true)
  end
local refused = {}
for place, call in ipairs(cjson.decode(ARGV[1])) do
  if not may(unpack(call)) then
    refused[#refused + 1] = place
  end
end
return refused
