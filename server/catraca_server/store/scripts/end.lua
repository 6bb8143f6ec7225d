-- Ends a session of a user, or keeps a login that is under way from writing it.
-- KEYS[1]  the session's key
-- ARGV[1]  the user
-- ARGV[2]  the login's sequence; empty: the login was long ago
-- ARGV[3]  1: the login is over, so that a session which is absent has ended
-- ARGV[4]  how long a recent login may still be under way, ms
-- Returns 1 if this ended something, a session of that user or a login; else 0.
local held = redis.pcall('GET', KEYS[1])
if held then
  -- For a value of another type, `held` is an error, which is not a record either.
  local readable, record = pcall(cjson.decode, held)
  if not readable or type(record) ~= 'table' or record['user_id'] ~= ARGV[1] then
    return 0
  end
  local buried = record['void']
  if type(buried) == 'number' and (ARGV[3] == '1' or covers(buried, tonumber(ARGV[2]))) then
    return 0
  end
elseif ARGV[3] == '1' then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  -- A script that has written may go on writing when memory is full, and ending a session must always be possible.
  -- (DEL would do as well, but then the key would be gone, and could not be written in a slot that is migrating.)
  redis.call('PEXPIREAT', KEYS[1], '9999999999999')
  -- Also where the session was written: calls that still assume that the login is under way must see that it has
  -- ended, and so must earlier logins that may have got stuck.
  redis.call('SET', KEYS[1], tombstone(ARGV[2], ARGV[1]), 'PX', ARGV[4])
end
return 1
