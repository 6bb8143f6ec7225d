-- Deletes what is under a session's key, unless it is a tombstone.
-- KEYS[1]  the session's key
-- Returns 1 if it deleted something, else 0.
if is_tombstone(redis.pcall('GET', KEYS[1])) then
  return 0
end
return redis.call('DEL', KEYS[1])
