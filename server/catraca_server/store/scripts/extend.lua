-- Makes a user's index last at least until a deadline, before a session in it is given that deadline.
-- KEYS[1]  the user's index
-- ARGV[1]  the session id
-- ARGV[2]  the deadline, Unix ms
local clock = redis.call('TIME')
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) then
  redis.call('ZADD', KEYS[1], string.format('%.0f', 2 * (clock[1] * 1000000 + clock[2]) + 1), ARGV[1])
end
-- Written also where it lasts long enough: replicas are waited for only after a write; see confirm.lua.
local lasts = math.ceil(clock[1] * 1000 + clock[2] / 1000) + redis.call('PTTL', KEYS[1])
redis.call('PEXPIREAT', KEYS[1], string.format('%.0f', math.max(lasts, tonumber(ARGV[2]))))
return 0
