-- Makes a user's index last at least until a deadline, before a session in it is given that deadline.
-- KEYS[1]  the user's index
-- ARGV[1]  the session id
-- ARGV[2]  the deadline, Unix ms
local now_us = clock_us()
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  redis.call('ZADD', KEYS[1], as_text(committed(sequence_at(now_us))), ARGV[1])
end
-- Written even if it lasts long enough: replicas are waited for only after a write; see ensure_replicated.lua.
local lasts_until_ms = math.ceil(now_us / 1000) + redis.call('PTTL', KEYS[1])
redis.call('PEXPIREAT', KEYS[1], as_text(math.max(lasts_until_ms, tonumber(ARGV[2]))))
return 0
