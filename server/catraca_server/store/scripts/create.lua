-- Writes a session under an id that is free.
-- KEYS[1]  the session's key
-- ARGV[1]  the record
-- ARGV[2]  its expiry, Unix ms
-- ARGV[3]  until when it may be written, Unix ms: a login that got stuck must not write after it was given up
-- ARGV[4]  the login's sequence
-- ARGV[5]  the user
-- Returns created, taken, late, or revoked: the login was ended before it got here; or found: this very record is there,
-- which the caller takes for its own work only if it knows that it has sent this before.
if math.floor(clock_us() / 1000) > tonumber(ARGV[3]) then
  return 'late'
end
local held = redis.call('GET', KEYS[1])
if held == ARGV[1] then
  return 'found'
end
if held and not is_tombstone(held) then
  return 'taken'
end
if held then
  local buried = cjson.decode(held)
  if buried['user_id'] == ARGV[5] and covers(buried['void'], tonumber(ARGV[4])) then
    return 'revoked'
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2])
return 'created'
