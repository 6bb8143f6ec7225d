-- Writes a session under an id that is free.
-- KEYS[1]  the session's key
-- ARGV[1]  the record
-- ARGV[2]  its expiry, Unix ms
-- ARGV[3]  until when it may be written, Unix ms: an attempt that got stuck must not write after it was given up
-- ARGV[4]  the attempt, as the user's index numbered it
-- ARGV[5]  the user
-- Returns created, taken, late, or void: this attempt was revoked before it got here; found: the record is there already,
-- which the caller takes for its own work only where it knows that it has asked before.
local clock = redis.call('TIME')
if clock[1] * 1000 + math.floor(clock[2] / 1000) > tonumber(ARGV[3]) then
  return 'late'
end
local held = redis.call('GET', KEYS[1])
if held == ARGV[1] then
  return 'found'
end
if held and string.sub(held, 1, 8) ~= '{"void":' then
  return 'taken'
end
if held then
  local note, attempt = cjson.decode(held), tonumber(ARGV[4])
  -- From a time to come: the clock was set back, and numbers since then say nothing.
  local ahead = note['void'] > 2 * (clock[1] * 1000000 + clock[2])
  if note['user_id'] == ARGV[5] and (attempt == note['void'] or attempt < note['void'] and not ahead) then
    return 'void'
  end
end
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2])
return 'created'
