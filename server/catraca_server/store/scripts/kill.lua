-- Ends a session of a user, or keeps one that is about to be written from being written.
-- KEYS[1]  the session's key
-- ARGV[1]  the user
-- ARGV[2]  the attempt to create it, as the user's index numbered it; empty: that was long ago
-- ARGV[3]  1: the attempt is known to be over, so that a session that is not there has ended
-- ARGV[4]  for how long a recent attempt may be under way, in ms
-- Returns 1 if this ended something: a session of that user, or the attempt; else 0.
local held = redis.pcall('GET', KEYS[1])
if held then
  -- Of another type than a string, it is an error here, and no record either.
  local readable, record = pcall(cjson.decode, held)
  if not readable or type(record) ~= 'table' or record['user_id'] ~= ARGV[1] then
    return 0
  end
  local void = record['void']
  if type(void) == 'number' then
    -- A note of an earlier end does not cover attempts that came after it, nor any after the clock was set back.
    local clock, attempt = redis.call('TIME'), tonumber(ARGV[2])
    local ahead = void > 2 * (clock[1] * 1000000 + clock[2])
    if ARGV[3] == '1' or attempt == void or attempt < void and not ahead then
      return 0
    end
  end
elseif ARGV[3] == '1' then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  -- A script that has written may go on writing where memory has run out, and ending must be possible. (DEL would do
  -- it as well, but then the key were not there any more to be written, in a slot that is on its way to another node.)
  redis.call('PEXPIREAT', KEYS[1], '9999999999999')
  -- Also where it was written: whoever still takes it for an attempt must see that it has ended, and so must attempts
  -- before it, which may have got stuck.
  redis.call('SET', KEYS[1], '{"void":' .. ARGV[2] .. ',"user_id":' .. cjson.encode(ARGV[1]) .. '}', 'PX', ARGV[4])
end
return 1
