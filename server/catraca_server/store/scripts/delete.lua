-- Deletes a session, or whatever else stands under its key but a note that it must not be written.
-- KEYS[1]  the session's key
-- Returns 1 if there was something, else 0.
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'string' and string.sub(held, 1, 8) == '{"void":' then
  return 0
end
return redis.call('DEL', KEYS[1])
