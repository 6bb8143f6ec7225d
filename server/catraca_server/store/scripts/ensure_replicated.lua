-- Writes under a session's key without changing anything. WAIT counts from the last write of its own connection, so
-- this makes it cover what others wrote before. (Redis replicates no write that changes nothing, hence SET and DEL.)
-- KEYS[1]  the session's key
-- Returns 1 if there is something under the key, else 0.
local held = redis.call('GET', KEYS[1])
if held then
  redis.call('SET', KEYS[1], held, 'KEEPTTL')
  return 1
end
redis.call('SET', KEYS[1], '', 'PX', 1000)
redis.call('DEL', KEYS[1])
return 0
