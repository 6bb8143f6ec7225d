-- Writes a session's next version, if it is still the version that was changed.
-- KEYS[1]  the session's key
-- ARGV[1]  the record as it was read, byte for byte
-- ARGV[2]  the next record
-- ARGV[3]  the new expiry, Unix ms; empty: keep the expiry
-- ARGV[4]  the expiry as it was read, Unix ms; compared only if there is a new one
-- Returns 1 if it was written, 2 if the next record is there already, 0 if the session has changed otherwise, was
-- touched, or is gone.
local held = redis.call('GET', KEYS[1])
if held ~= ARGV[1] then
  return held == ARGV[2] and 2 or 0
end
if ARGV[3] == '' then
  redis.call('SET', KEYS[1], ARGV[2], 'KEEPTTL')
  return 1
end
-- The new expiry was computed from the last activity that the old expiry implied. (PEXPIRETIME reads an expiry exactly
-- from Redis 7 on. The oldest version supported is 6.2, where it may be off by the milliseconds that reading took.)
local clock = redis.call('TIME')
local expiry_ms = clock[1] * 1000 + math.floor(clock[2] / 1000) + redis.call('PTTL', KEYS[1])
if math.abs(expiry_ms - tonumber(ARGV[4])) > 20 then
  return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PXAT', ARGV[3])
return 1
