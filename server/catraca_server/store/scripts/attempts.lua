-- Login attempts, as store/attempts.py describes them. Every script that deals with them begins with this.
local function clock_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
local function sequence_at(microseconds)
  return 2 * microseconds
end
local function as_text(score)
  return string.format('%.0f', score)
end
local function committed(score)
  return score > 0 and score + 1 or score - 1
end
local function is_tombstone(held)
  return type(held) == 'string' and string.sub(held, 1, 8) == '{"void":'
end
local function tombstone(sequence, user_id)
  return '{"void":' .. sequence .. ',"user_id":' .. cjson.encode(user_id) .. '}'
end
-- A tombstone covers the login it was written for and earlier ones; not later ones. One that is ahead of the clock is
-- from before the clock was set back, and says nothing about other logins.
local function covers(buried, sequence)
  return sequence == buried or sequence < buried and buried <= sequence_at(clock_us())
end
