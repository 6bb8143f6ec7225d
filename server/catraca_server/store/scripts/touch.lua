-- Moves a session's expiry to a later time, if the session is still what was validated.
-- KEYS[1]  the session's key
-- ARGV[1]  the record as it was validated, byte for byte
-- ARGV[2]  the new expiry, Unix ms
-- Returns 1 if the session is as validated (and its expiry now at least that late), 0 if it changed or is gone.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
-- Two servers may touch at once and arrive in either order: the later expiry stays.
-- (PEXPIREAT ... GT says this from Redis 7 on; the oldest version supported is 6.2.)
local clock = redis.call('TIME')
local now_ms = clock[1] * 1000 + math.floor(clock[2] / 1000)
if now_ms + redis.call('PTTL', KEYS[1]) < tonumber(ARGV[2]) then
  redis.call('PEXPIREAT', KEYS[1], ARGV[2])
end
return 1
