-- What every script is set into: it decides by reading, and only then is anything written.
--
-- Redis does not roll back a script that fails half-way, and looks whether it may write (memory, disk, replicas)
-- at the first write alone. So a script returns its answer and the writes that it wants. The first may be refused:
-- it needs memory wherever a later one does. The others cannot fail: their keys were read, so they are of the right
-- type, their numbers were checked, and they are permitted. An error that begins with REFUSED changed nothing.
-- (due.lua tidies up by itself, as its last act: that may fail, and nothing after it can.)

local function integer(text, minimum)
  local number = tonumber(text)
  if not number or number % 1 ~= 0 or number < (minimum or 0) or number > 9007199254740991 then
    error('not a number to work with: ' .. tostring(text), 0)
  end
  return number
end

-- What a session's key begins with; nothing where it is a key of another type, as MGET has it, and true then.
local function beginning_of(key, length)
  local beginning = redis.pcall('GETRANGE', key, 0, length - 1)
  if type(beginning) ~= 'table' then
    return beginning
  elseif string.find(beginning.err, 'WRONGTYPE', 1, true) then
    return '', true
  end
  error(beginning.err, 0)
end

-- The epoch of this session's state, by its beginning; nil where that is none: as lockstep/wire/heads.py finds it.
local function epoch_of(id, beginning)
  local pattern = '^{"session_id":"([%x-]+)","epoch":"(' .. string.rep('[0-9a-z]', 13) .. ')",'
  local its_id, epoch = string.match(beginning, pattern)
  return its_id == id and epoch or nil
end

local function decide()
  -- the script
end

local function refused(why)
  -- What Redis 6.2 says begins with the place in the script that it was said to.
  local text = string.gsub(type(why) == 'table' and why.err or why, '^@?user_script:%s*%d+:%s*%-?', '')
  return { err = 'REFUSED ' .. text }
end

local is_decided, answer, writes = pcall(decide)
if not is_decided then
  return refused(answer)
elseif not writes then
  return answer
end
local may = redis.acl_check_cmd -- since Redis 7.0; before, a right is missed only where it was taken away since the start
if may then
  for i = 1, #writes do
    if not may(writes[i][1], writes[i][2]) then
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
