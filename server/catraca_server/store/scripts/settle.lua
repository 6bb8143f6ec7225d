-- Says of an entry that its session has been written.
-- KEYS[1]  the user's index
-- ARGV[1]  the session id
-- ARGV[2]  the number of the attempt; one more is the number of what has been written
-- Returns 1 if the session is in the index, be it by another attempt, else 0.
local score = redis.call('ZSCORE', KEYS[1], ARGV[1])
if score and math.abs(tonumber(score)) == tonumber(ARGV[2]) then
  redis.call('ZADD', KEYS[1], string.format('%.0f', tonumber(score) > 0 and score + 1 or score - 1), ARGV[1])
end
return score and 1 or 0
