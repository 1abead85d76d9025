-- How questions stand. Shared by the scripts that begin with it.
local ASK, DECISION = 'cs:ask:{cs}:', 'cs:dec:{cs}:'
local ASKED = 'cs:asked'

local function now_in_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

local function whole(number)
  return string.format('%.0f', number)
end

-- Returns 'unknown', a choice, 'expired' or 'open'; then when that was decided, or the deadline.
local function standing(id, now)
  local ask = redis.call('HMGET', ASK .. id, 'digest', 'deadline', 'open', 'at')
  if not ask[1] then
    return 'unknown', now
  end
  local ballot = redis.call('HMGET', DECISION .. id, 'digest', 'choice', 'at', 'deadline')
  local is_same = ballot[1] == ask[1]
  if is_same and ballot[2] then
    return ballot[2], tonumber(ballot[3])
  end
  if ask[3] ~= '1' then
    return 'withdraw', now
  end
  local extended = is_same and tonumber(ballot[4] or '0') or 0
  -- Asked anew since, it has its own time.
  local deadline = extended > tonumber(ask[4] or '0') and extended or tonumber(ask[2])
  if now > deadline then
    return 'expired', deadline
  end
  return 'open', deadline
end

-- What became of these questions, as far as they are not open: five texts for each.
local function add_rulings(answer, ids, now)
  for id in string.gmatch(ids, '%S+') do
    local state, at = standing(id, now)
    if state ~= 'open' and state ~= 'unknown' then
      local document = redis.call('HGET', DECISION .. id, 'document')
      local digest = redis.call('HGET', ASK .. id, 'digest')
      local is_decided = state ~= 'expired' and document
      for _, text in ipairs({ id, digest, state, whole(at), is_decided and document or '' }) do
        answer[#answer + 1] = text
      end
    end
  end
  return answer
end

-- Milliseconds until the first of these, or the alarm, is due; 0: one is. An alarm of '0' is none.
local function due_in(ids, alarm, now)
  local nearest = alarm ~= '0' and tonumber(alarm) or nil
  for id in string.gmatch(ids, '%S+') do
    local state, deadline = standing(id, now)
    if state ~= 'open' then
      return 0
    end
    nearest = math.min(nearest or deadline, deadline)
  end
  return nearest and math.max(nearest - now + 1, 0) or 0
end
