-- Writes a session under an id that is free.
-- KEYS[1]  the session's key
-- ARGV[1]  the record
-- ARGV[2]  its expiry, Unix ms
-- ARGV[3]  until when it may be written, Unix ms: an attempt that got stuck must not write after it was given up
-- ARGV[4]  the attempt, as the user's index numbered it
-- ARGV[5]  the user
-- Returns created, taken, late, or void: this attempt was revoked before it got here.
local clock = redis.call('TIME')
if clock[1] * 1000 + math.floor(clock[2] / 1000) > tonumber(ARGV[3]) then
  return 'late'
end
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, 8) ~= '{"void":' then
  return 'taken'
end
local note = held and cjson.decode(held)
if note and note['user_id'] == ARGV[5] and tonumber(ARGV[4]) <= note['void'] then
  return 'void'
end
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2])
return 'created'
