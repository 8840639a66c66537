-- The frame around every script: it decides by reading, and only then is anything written.
--
-- Redis does not roll back a script that fails half-way, and checks only at the first write whether it may write
-- (memory, disk, replicas). So a script returns its answer and the writes that it wants. The first may be refused:
-- it needs memory wherever a later one does. The others cannot fail: their keys were read, so they are of the right
-- type, their numbers were checked, and they are permitted. An error that begins with REFUSED changed nothing.
-- (due.lua tidies up by itself, as its last act: that may fail, and nothing after it can.)
-- Every key that a script uses is declared, so that Redis Cluster knows where it can run.
-- The constants that a script names are Python's, set as locals in front of it by broker/script.py.

local function integer(text, minimum)
  local number = tonumber(text)
  if not number or number % 1 ~= 0 or number < (minimum or 0) or number > 9007199254740991 then
    error('not a number to work with: ' .. tostring(text), 0)
  end
  return number
end

-- The first bytes of a session's key; '' and true where it is a key of another type (to MGET that is none).
local function beginning_of(key, length)
  local beginning = redis.pcall('GETRANGE', key, 0, length - 1)
  if type(beginning) ~= 'table' then
    return beginning
  elseif string.find(beginning.err, 'WRONGTYPE', 1, true) then
    return '', true
  end
  error(beginning.err, 0)
end

-- The epoch of this session's state, by its beginning, as lockstep/wire/heads.py finds it; nil where that is none.
local function epoch_of(id, beginning)
  local pattern = '^{"session_id":"([%x-]+)","epoch":"(' .. string.rep('[0-9a-z]', 13) .. ')",'
  local its_id, epoch = string.match(beginning, pattern)
  return its_id == id and epoch or nil
end

local function decide()
  -- the script
end

local function refused(why)
  -- In Redis 6.2 an error begins with its place in the script.
  local text = string.gsub(type(why) == 'table' and why.err or why, '^@?user_script:%s*%d+:%s*%-?', '')
  return { err = 'REFUSED ' .. text }
end

local is_decided, answer, writes = pcall(decide)
if not is_decided then
  return refused(answer)
elseif not writes then
  return answer
end
-- Since Redis 7.0; before, a right can be missed half-way where it was taken away since the process started.
local is_permitted = redis.acl_check_cmd
if is_permitted then
  for i = 1, #writes do
    if not is_permitted(writes[i][1], writes[i][2]) then
      return refused('NOPERM this user may not ' .. writes[i][1] .. ' ' .. writes[i][2])
    end
  end
end
local reply = redis.pcall(unpack(writes[1]))
if type(reply) == 'table' and reply.err then
  return refused(reply)
end
for i = 2, #writes do
  redis.call(unpack(writes[i]))
end
return answer
